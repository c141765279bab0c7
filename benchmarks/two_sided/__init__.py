"""Do likelihoods lie between their two bounds, and as often as stated?"""
