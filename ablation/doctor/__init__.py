"""``ablation-doctor``: does this machine compute what the CPU computes, and how fast?"""
