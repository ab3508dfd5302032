"""`audit`: which Adam a transformation is, found from what it does to gradients that were made to tell."""
