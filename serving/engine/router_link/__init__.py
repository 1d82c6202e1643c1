"""A rank's connections to the routers."""
