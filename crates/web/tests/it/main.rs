//! The server over real loopback sockets.
