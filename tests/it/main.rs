//! Tests of the whole with scripted parts.
