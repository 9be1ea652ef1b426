"""Metrics: image similarity and recognisability, each with the protocol it was measured by."""
