//! Rules in CEL: validation, evaluation, state snapshots.
