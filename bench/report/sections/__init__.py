"""The page's sections: one file each, every one a pure function from a study to a piece of the tree."""
