//! The composition root: builds every part from the configuration and runs it.
