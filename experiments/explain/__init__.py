"""The benchmark of explanations, on pairs whose causes are known."""
