"""The image codec's parts that need no generator: file format, packing, range coding, tiles."""
