"""Classifiers that answer early when they can, and show where every exit looked.

The flow, with ``import exitlens as xl``::

    net    = xl.attach(backbone, at=["layer1", "layer2"], num_classes=10, example=images[:1])
    outs   = net(images)                              # every exit: logits, attention, evidence
    result = xl.fit(net, train, val, epochs=8)        # Explanation-Guided Training
    trace  = xl.collect(net, calibration)             # one pass: every exit of every sample
    policy = xl.calibrate(trace, max_accuracy_drop=0.01)
    pred   = xl.predict(net, images, policy)          # adaptive: each image leaves at the first sure exit
    report = xl.evaluate(xl.collect(net, test), policy)
    why    = xl.explain(net, images[0], policy)
    xl.save(net, policy, "bundle")
    net, policy = xl.load("bundle")                   # xl.load("bundle", backbone=...) for a module of your own

``xl.data`` has data sets and preprocessing, ``xl.demo`` generated data, ``xl.errors`` every error and warning, and
``xl.types`` the values inside the results of the verbs.
"""

from lazy_loader import attach_stub

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)  # __init__.pyi: each name is imported when it is first used
