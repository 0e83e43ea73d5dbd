//! Harness, oracles, crash lab and benchmark: the only place that sees everything.
