//! jailer
