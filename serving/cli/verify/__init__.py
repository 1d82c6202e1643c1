"""moe-serving verify: equal answers, however the experts are laid out."""
