"""Curvature as linear operators: Hessian, Gauss-Newton, Fisher, their blocks and preconditioned forms; each answers `operator @ vector`."""
