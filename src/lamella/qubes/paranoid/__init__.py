"""Opening and decoding what is restored in a disposable qube, not in dom0 (decision 0060, docs/PIPE.md).

**near side**: dom0, which asks for contents by their ids, hands over sealed bytes that it does not look into, and
believes nothing that comes back but what has the id. **far side**: the disposable, which has the keys of one domain.
"""
