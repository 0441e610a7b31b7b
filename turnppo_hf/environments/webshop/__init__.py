"""WebShop as text: the environment, its rules, the products, the search, the pages and a shopper that plays well."""

from turnppo_hf.environments.webshop.environment import WebShop

__all__ = ["WebShop"]
