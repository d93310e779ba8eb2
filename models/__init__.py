"""Trained models that come with the package, a pipeline folder each; see `common.pretrained`."""
