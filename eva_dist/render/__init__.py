"""What reports, pages and terminals draw with: words, colours, markup, charts."""
