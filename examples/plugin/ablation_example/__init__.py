"""A plug-in of ablation: a component, its loss term, a model and a table."""
