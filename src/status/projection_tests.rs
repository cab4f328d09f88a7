//! Pure: tests of the projection.
