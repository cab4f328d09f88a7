//! To come.
#![allow(missing_docs)]
