//! Tenants, users, sessions, API tokens, authorisation.
