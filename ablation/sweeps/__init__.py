"""From a table file to jobs, and from jobs to processes."""
