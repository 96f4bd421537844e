//! The handshake of a lane.
