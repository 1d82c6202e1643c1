"""A rank's end of the link to routers."""
