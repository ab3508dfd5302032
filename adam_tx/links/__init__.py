"""The parts that optimizers are made of: a file a link, named as the link is."""
