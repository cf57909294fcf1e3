//! The event log between gateway and consumers: records on `muster-journal`.
