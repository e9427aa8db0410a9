"""How good a model is, measured offline on drawn scenes whose truth is known."""
