"""Methods: one file each, with its loss and its optimizers; the only package that imports flax.

A method's ``build(dataset, **options)`` returns a `jaxcold.types.Model`.
"""
