"""One verb a file: fit, collect, calibrate, predict, evaluate, explain. They exchange types and never import each other."""
