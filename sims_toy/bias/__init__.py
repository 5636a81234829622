"""Which errors can a model correct from its own samples?"""
