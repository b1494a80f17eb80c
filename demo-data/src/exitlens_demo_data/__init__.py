"""The images of exitlens' demo: a class-balanced subset of Fashion-MNIST, as data files and nothing else.

``fashion.json`` says what is in the four PNG sheets, their labels and their SHA-256; ``exitlens.load_fashion`` and
``exitlens.load_scenes`` read them. Source and licence: ``LICENSE.fashion-mnist`` (MIT, Zalando SE).
"""

__version__ = "0.2.0"
