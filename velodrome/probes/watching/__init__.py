"""The parts of `watch`: what is measured, what may be spent, where it is written, and what holds with several processes."""
