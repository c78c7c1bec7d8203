"""The picture: one HTML file that fetches nothing, made of the documents that the other reports are.

Knows nothing of where a capture or a verdict came from.  What people see is drawn by the script in ``assets`` from data
in the page; tables of ranges and findings are there without it.  Everything in a page may be an untrusted machine's:
text goes through jinja2's autoescaping and `inspector.printable`, data through `inspector.report.html.page.embedded`.
"""
