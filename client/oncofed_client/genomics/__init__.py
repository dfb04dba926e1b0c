"""A site's sequencing files become features: expression, copy number, mutations. Each file is read once, line by line.

    settings -> source -> expression | copy_number | vcf, maf -> impact -> FeatureTable

Everything that comes in is a stranger's file: `lines` bounds it, the readers parse it, and after them nobody checks again.
"""
