"""Statistics over token rows, pure torch: SVD trackers, convergence, rank allocation, whitening.

Shapes: T token rows, D `in_features`, K components, Q tracked components (Q >= K).
`x_TD` is tokens by features, `v_KD` components by features, one per row.
"""
