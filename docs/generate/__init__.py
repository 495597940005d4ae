"""Pages of the documentation that are made of the code: methods, components, papers, reference.

``hook`` hands them to MkDocs; nothing is written into the repository.
"""
