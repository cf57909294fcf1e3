//! HTTP kit: errors, request ids, extractors, paging.
