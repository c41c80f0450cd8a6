"""The gRPC edge: read, validate, call the broker, answer. The only place, with `server`, that knows grpc."""
