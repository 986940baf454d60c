//! seccomp-filters
