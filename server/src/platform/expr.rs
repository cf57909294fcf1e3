//! The CEL kit: compile with limits, evaluate in inner scopes.
