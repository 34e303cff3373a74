"""Asking a TensorFlow Serving server, without the model and TensorFlow; gRPC alone needs the extra `serving`."""
