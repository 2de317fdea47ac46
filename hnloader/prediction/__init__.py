"""Predict hypernetworks from images, and train the networks that do. docs/predict.md is the guide."""
