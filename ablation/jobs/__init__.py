"""One job: train a config, attack what is trained, record the result."""
