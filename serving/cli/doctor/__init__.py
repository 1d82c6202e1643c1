"""moe-serving doctor: what this machine and a deployment can do."""
