"""Why something does not work: ``tp2 doctor`` looks at everything, ``tp2 explain`` follows one name."""
