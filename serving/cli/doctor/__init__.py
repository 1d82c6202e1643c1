"""``moe-serving doctor``: checks of this machine and of the chart's presets."""
