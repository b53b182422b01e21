"""The work that users ask for, as functions over an open repository: plan, then execute.

Every plan is a value that can be printed; `execute` does what the plan says and reports progress as events.
"""
