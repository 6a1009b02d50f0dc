"""Pure decisions: a picture in, an answer out; no clock, no I/O."""
