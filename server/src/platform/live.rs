//! The bounded live bus behind the SSE stream.
