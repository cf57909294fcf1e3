//! Joins the slices' routes into one router with one OpenAPI document.
